"""What do a command and the Python function of the same name share?"""
