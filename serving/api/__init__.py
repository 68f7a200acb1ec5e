"""The HTTP face: OpenAI's endpoints and ours. Rules live in the services; here is only the wire format."""
