PARAGRAPHS = {}
TRANSFER_TITLE = "x"


def tell_transfers(reader):
    return []
