"""DR.Experts in production: training, exact reduction, export, and a torch-free runtime.

This module stays free of imports: `import drexperts.runtime` executes it.
"""

__version__ = "0.1.0"
