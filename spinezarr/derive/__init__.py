"""How is a store made from a store: resampled, cropped, or with fewer scans and masks?"""
