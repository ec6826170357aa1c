"""What Python programs call: run an experiment, open a finished run, predict and export.

    import fl_vitlora as fv

    run = fv.run({"clients": 20, "rounds": 5})
    run.predict("photos/").write("photos.csv")

`running` starts runs and comparisons, and `callbacks` has the contract of objects that follow them.
`finished` opens a finished run. `predictions` has the classes of new images. The names that a
program needs are attributes of the package `fl_vitlora`.
"""
