"""The SuperLink and what stands before it: who may connect, ask and send what."""
