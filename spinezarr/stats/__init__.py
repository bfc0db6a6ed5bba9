"""What does a dataset hold, in numbers and plots, and does this agree with its published card?"""
