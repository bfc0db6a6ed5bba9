"""How well does a predicted mask of vertebrae agree with the true one, and are its names right?"""
