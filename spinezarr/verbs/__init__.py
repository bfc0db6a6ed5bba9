"""What the commands of the command line and the functions of Python have in common."""
