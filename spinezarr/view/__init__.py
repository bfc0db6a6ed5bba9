"""What people look at: slices as pictures, what a page shows of a scan, and the page itself."""
