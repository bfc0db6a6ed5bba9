"""What does a command of the command line share with the Python function of its name?"""
