"""How do training libraries read samples from a store?

Most modules need the library that they are named after.
"""
