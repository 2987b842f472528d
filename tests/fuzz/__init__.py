"""Random cases without end: operations, configs, and damaged files. `make fuzz` runs them.

A case is a function of a seed. It returns a word for the table, and raises what it finds.
"""
