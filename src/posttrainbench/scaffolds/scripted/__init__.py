"""Scripted agents: each file is a program that runs inside the sandbox in the place of an LLM agent."""
