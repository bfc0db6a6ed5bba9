def test_x(s3_server):
    print(s3_server.new_bucket())
