"""PARAMS: which parameters a producer may set, and to which values.

``rules.py`` and ``compound.py`` define what a value may be, ``table.py`` gives each name its rule, ``refused.py`` gives
the reasons for names without a rule, ``accepted.py`` collects the names that one pipeline takes, and ``fitting.py``
adds what depends on its model and tokenizer. transformers itself ignores many unknown names silently, and calls some
values as functions. Here each name, JSON type and bound is checked before a value is used, at every depth.
"""
