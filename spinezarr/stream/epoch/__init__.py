"""In which order does an epoch give its batches, and to which rank and worker?"""
