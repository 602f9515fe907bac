"""The model elsewhere: the official code's names and files, a folder for Hugging Face."""
