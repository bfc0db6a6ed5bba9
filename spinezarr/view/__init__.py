"""What do people see of a scan: pictures, the viewer, and the views of other programs?"""
