"""An S3 server that keeps nothing but digests: discard.py PORT-FILE.

It takes PUT, multipart uploads and HEAD on 127.0.0.1, reads bodies and forgets them. The ETag of an object is the MD5 of
its bytes, or that of its parts' MD5s, as S3 makes it; a body is refused when its SHA-256 is not the one that is signed.
"""
import hashlib
import socketserver
import sys
import threading
import urllib.parse

lock = threading.Lock()
objects, uploads = {}, {}


class Connection(socketserver.StreamRequestHandler):
    rbufsize = 1 << 20

    def setup(self):
        self.disable_nagle_algorithm = True
        super().setup()

    def answer(self, status, body=b'', **headers):
        head = f'HTTP/1.1 {status} X\r\nContent-Length: {headers.pop("length", len(body))}\r\n'
        head += ''.join(f'{k}: {v}\r\n' for k, v in headers.items())
        self.wfile.write(head.encode() + b'\r\n' + body)

    def body(self, headers):
        left = int(headers.get('content-length', 0))
        size, md5, sha256 = left, hashlib.md5(), hashlib.sha256()
        signed = headers.get('x-amz-content-sha256', '')
        while left:
            data = self.rfile.read1(min(left, 1 << 20))
            if not data:
                raise ConnectionError
            md5.update(data)
            if len(signed) == 64:
                sha256.update(data)
            left -= len(data)
        return size, md5, len(signed) != 64 or signed == sha256.hexdigest()

    def handle(self):
        while True:
            line = self.rfile.readline().decode()
            if not line:
                return
            method, target, _ = line.split()
            headers = {}
            while (line := self.rfile.readline().decode().strip()):
                name, value = line.split(':', 1)
                headers[name.lower()] = value.strip()
            path, _, query = target.partition('?')
            q = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
            if headers.get('expect'):
                self.wfile.write(b'HTTP/1.1 100 Continue\r\n\r\n')
            if method == 'PUT':
                size, md5, right = self.body(headers)
                if not right:
                    self.answer(400, b'<Error><Code>XAmzContentSHA256Mismatch</Code></Error>')
                    continue
                with lock:
                    if 'uploadId' in q:
                        uploads[q['uploadId']][int(q['partNumber'])] = (size, md5.digest())
                    else:
                        objects[path] = (size, md5.hexdigest())
                self.answer(200, ETag=f'"{md5.hexdigest()}"')
            elif method == 'POST' and 'uploads' in q:
                with lock:
                    name = f'u{len(uploads)}'
                    uploads[name] = {}
                self.answer(200, f'<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>'.encode())
            elif method == 'POST':
                self.body(headers)
                with lock:
                    parts = uploads.pop(q['uploadId'])
                    etag = hashlib.md5(b''.join(parts[n][1] for n in sorted(parts))).hexdigest() + f'-{len(parts)}'
                    objects[path] = (sum(size for size, _ in parts.values()), etag)
                self.answer(200, f'<CompleteMultipartUploadResult><ETag>"{etag}"</ETag></CompleteMultipartUploadResult>'.encode())
            elif method == 'HEAD' and path in objects:
                self.answer(200, length=objects[path][0], ETag=f'"{objects[path][1]}"')
            else:
                self.answer(404 if method == 'HEAD' else 204)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


server = Server(('127.0.0.1', 0), Connection)
with open(sys.argv[1], 'w') as f:
    f.write(f'{server.server_address[1]}\n')
server.serve_forever()
