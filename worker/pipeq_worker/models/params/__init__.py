"""Which parameters a producer may set, and what they may be.

``rules.py`` and ``compound.py`` say what a value may be, ``table.py`` which rule a name has, ``refused.py`` why a name
has none, ``accepted.py`` which names one pipeline takes, and ``fitting.py`` what its model and tokenizer have to say.

transformers itself swallows many unknown names silently, and calls what some values name; here each name, JSON type
and bound is checked before anything is done with it, at every depth.
"""
