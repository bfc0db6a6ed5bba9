"""How is a scan shown to people: as pictures, in the viewer, and in other programs?"""
