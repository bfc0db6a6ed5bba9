"""How are scans written for other programs: as NIfTI files, nnU-Net datasets and pictures?"""
