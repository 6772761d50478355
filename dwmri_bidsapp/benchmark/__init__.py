"""Denoisers side by side on simulated runs with known truth: same noisy file, same mask, same threads.

`cases` makes the runs, `methods` knows the denoisers and runs each in a process of its own (`worker` is that process
for those in Python), `scores` measures them, `tables` and `figures` show what came out, `run` ties them together.
Nothing is imported here: the process of a method, whose time and memory are measured, would pay for it.
"""
