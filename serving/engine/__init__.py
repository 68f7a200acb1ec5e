"""The synchronous core: no asyncio, no HTTP. One thread calls `Engine.step` in a loop."""
