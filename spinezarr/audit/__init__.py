"""Finding defects of annotation and data in stores: rules, and running them."""
