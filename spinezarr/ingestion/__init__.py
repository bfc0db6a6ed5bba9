"""How does a raw folder become a store: discover, open, check, orient, encode, publish?"""
