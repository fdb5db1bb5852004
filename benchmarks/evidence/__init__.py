"""What the evidence for the method is made of: measurements and tables."""
