"""What a dataset holds, in numbers and plots, beside what its published card prints."""
