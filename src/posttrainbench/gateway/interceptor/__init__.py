"""The interceptor: mitmproxy's protocol engine in a process and an environment of its own (docs/web.md).

`__main__`, `proxy` and `authority` run there, under Python 3.12 or later; `channel` and `content` on both sides, with
nothing but the standard library. Nothing here imports the rest of the harness.
"""
