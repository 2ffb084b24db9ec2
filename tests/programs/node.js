// Buffers that JavaScript keeps: node allocates each one's memory by malloc, from C++ that a builtin of V8's calls, which a
// function of ours calls. Speaks the protocol of victim.h.
//
// True leaks: leakBuffers, 200 blocks of 5,000 bytes. What allocateAndDrop allocates is dropped and collected.
'use strict';
const fs = require('fs');

function print(text) {
    fs.writeSync(1, text + '\n');
}

function expect(word) {
    const bytes = Buffer.alloc(64);
    let line = '';
    while (!line.endsWith('\n')) {
        if (fs.readSync(0, bytes, 0, 1) !== 1)
            process.exit(103);
        line += String.fromCharCode(bytes[0]);
    }
    if (line !== word + '\n')
        process.exit(105);
}

const kept = [];

function leakBuffers(count) {
    for (let i = 0; i < count; i++)
        kept.push(Buffer.allocUnsafeSlow(5000));
}

function allocateAndDrop(count) {
    let sum = 0;
    for (let i = 0; i < count; i++)
        sum += Buffer.allocUnsafeSlow(7000).length;
    return sum;
}

function serve(turn) {
    leakBuffers(10);
    return allocateAndDrop(turn);
}

print(`ready ${process.pid}`);
expect('go');
for (let turn = 0; turn < 20; turn++)
    serve(turn);
global.gc();
print(JSON.stringify({ function: 'leakBuffers', bytes: 5000 * kept.length, objects: kept.length }));
print('done');
expect('quit');
