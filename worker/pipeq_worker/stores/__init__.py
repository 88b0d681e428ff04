"""STORES: reads inputs and writes results, one file for each URI scheme, and checks what may be accessed."""
