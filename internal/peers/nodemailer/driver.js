// Reads one JSON object from standard input and writes one to standard output.
//
//   in:  {"transport": {...} or null, "messages": [{...}, ...]}
//   out: {"node": "...", "nodemailer": "...", "results": [{...}, ...]}
//
// With a transport, each message is sent over it, one after the other. Without
// one, each is only built, and its bytes come back in base64. The fields of both
// are nodemailer's own, but that the "encoding" beside a raw message's "content"
// is heeded, as it is for attachments: bytes have no other way through JSON. A
// message that fails does not stop the next.
'use strict';

const fs = require('fs');
const nodemailer = require('nodemailer');
const { version } = require('nodemailer/package.json');

async function collect(stream) {
    const chunks = [];
    for await (const chunk of stream) {
        chunks.push(chunk);
    }
    return Buffer.concat(chunks);
}

function decodeRaw(message) {
    if (message.raw && message.raw.encoding) {
        message.raw = Buffer.from(message.raw.content, message.raw.encoding);
    }
    return message;
}

async function build(message) {
    const builder = nodemailer.createTransport({ streamTransport: true, newline: 'windows' });
    const info = await builder.sendMail(message);
    return { raw: (await collect(info.message)).toString('base64'), messageId: info.messageId };
}

async function send(transport, message) {
    const info = await transport.sendMail(message);
    return {
        accepted: info.accepted || [],
        rejected: info.rejected || [],
        response: info.response,
        messageId: info.messageId,
        // LMTP and partly refused mail carry one error per refused recipient.
        errors: (info.rejectedErrors || []).map(describe),
    };
}

function describe(err) {
    return {
        message: err.message,
        code: err.code,
        command: err.command,
        response: err.response,
        responseCode: err.responseCode,
        recipient: err.recipient,
    };
}

async function main() {
    const input = JSON.parse(fs.readFileSync(0, 'utf8'));
    const transport = input.transport && nodemailer.createTransport(input.transport);
    const results = [];
    for (const message of input.messages.map(decodeRaw)) {
        try {
            results.push(await (transport ? send(transport, message) : build(message)));
        } catch (err) {
            const refused = (err.rejectedErrors || []).map(describe);
            results.push({ rejected: err.rejected || [], error: describe(err), errors: refused });
        }
    }
    if (transport) {
        transport.close();
    }
    process.stdout.write(JSON.stringify({ node: process.version, nodemailer: version, results }));
}

main();
