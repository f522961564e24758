#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Podman's API, of which a machine is asked one thing: one HTTP request on standard input is answered with "OK".
# Started by socat for each connection. Adversary: nobody.
end=$(printf '\r')
while IFS= read -r line && [ "$line" != "$end" ]; do
    :
done
printf 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK'
