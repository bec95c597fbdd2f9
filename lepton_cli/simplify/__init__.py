"""`simplify`: the same function in fewer standard operators, each change with its reason, each rule proved."""
