"""What an answer's text holds besides content: thoughts and tool calls, in the form the model's template gives them."""
