"""The browser face: Gradio tabs over the same services as the API.

Its modules import Gradio, which costs seconds that a command line or an API-only server need not pay:
only `app.build_app` does so, when it is to serve the page."""

import os

# Read by Gradio while it is imported, and again at startup; without it the server contacts api.gradio.app.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
