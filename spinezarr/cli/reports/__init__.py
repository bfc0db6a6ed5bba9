"""What do the commands print? A command imports its report when it has run."""
