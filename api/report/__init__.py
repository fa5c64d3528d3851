"""Reports: shape suites, comparison tables, figures, one self-contained page.

Nothing is imported here: the command line borrows light modules (``units``, ``output``) from this
package and must not pay for pandas and seaborn to print its help.
"""
