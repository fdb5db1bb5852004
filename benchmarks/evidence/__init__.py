"""The instrument: what a reference picture does on the toy world, as `settings` asks it.

    python -m benchmarks.evidence              measure what is missing, write the tables and the plots
    python -m benchmarks.evidence --render     write them again, measure nothing
    python -m benchmarks.evidence.real_language_model FOLDER

Every picture is judged on both axes: "kept", the share of what the prompt names that the picture shows; "followed",
the share of what the prompt leaves open that is the reference's (of what it names, where it names everything).
"""
