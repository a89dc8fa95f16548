"""Routes in the shape of Vast's Deployments API, so that its client, command line and workers can use this cloud.

They are served when the cloud is started with `--vast-routes`. What they create is an ordinary endpoint, visible to all
of this cloud's own commands; what they add is numbers for ids, Vast's JSON, and tickets for calls over plain HTTP.
"""
