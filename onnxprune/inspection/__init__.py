"""What a file's weights show: where its zeros lie, what they are worth, what became of the model it came from."""
