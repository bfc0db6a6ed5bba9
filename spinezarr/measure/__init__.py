"""What can this machine do, and how fast is a store read on it?"""
