// Sends requests to a CoAP server and prints each answer as a line of JSON.
//
//   node client.js PORT < REQUESTS
//
// REQUESTS is a JSON array; an element has method, path (with query), confirmable, payload and options, all but the first
// two optional. Requests are sent one after the other.
'use strict'

const coap = require('coap')

function send (port, want) {
  return new Promise((resolve, reject) => {
    const [pathname, query] = want.path.split('?')
    const req = coap.request({
      hostname: '127.0.0.1',
      port,
      method: want.method,
      pathname,
      query,
      confirmable: want.confirmable !== false,
      observe: want.observe,
      options: want.options
    })
    req.on('error', reject)
    req.on('response', (res) => {
      const parts = []
      res.on('data', (chunk) => {
        parts.push(chunk)
        if (want.observe) done()
      })
      res.on('end', done)
      function done () {
        if (want.observe) res.close()
        resolve({
          code: res.code,
          payload: Buffer.concat(parts).toString(),
          format: res.headers['Content-Format'],
          maxAge: res.headers['Max-Age'],
          confirmable: res._packet.confirmable,
          ack: res._packet.ack
        })
      }
    })
    if (want.payload !== undefined) req.write(want.payload)
    req.end()
  })
}

async function main () {
  const parts = []
  for await (const chunk of process.stdin) parts.push(chunk)
  for (const want of JSON.parse(Buffer.concat(parts))) {
    console.log(JSON.stringify(await send(Number(process.argv[2]), want)))
  }
}

main().then(() => process.exit(0), (err) => {
  console.error(err)
  process.exit(1)
})
