"""What runs beside and inside the graded process.

The fork-server loads this folder as a bare package: only the standard library and relative imports are allowed here.
"""
