"""Which defects do the images and annotations of a store have?"""
