// Workloads in AssemblyScript: its strings, maps and collector. As in C, name(n) does its
// work n times and returns a sum of all that it found.

let rng: u64 = 0;

function rnd(): u32 {
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return <u32>(rng >> 16);
}

function word(): string {
  let s = "";
  for (let n: u32 = 3 + rnd() % 8; n > 0; n--) s += String.fromCharCode(97 + rnd() % 26);
  return s;
}

function hash(s: string): u64 {
  let h: u64 = 14695981039346656037;
  for (let i = 0; i < s.length; i++) h = (h ^ s.charCodeAt(i)) * 1099511628211;
  return h;
}

// bytes hashes an array whose every read is checked.
export function bytes(n: u32): u64 {
  const a = new Uint8Array(64 << 10);
  rng = 88172645463325252;
  for (let i = 0; i < a.length; i++) a[i] = <u8>rnd();
  let sum: u64 = 0;
  for (; n > 0; n--) {
    let h: u64 = 14695981039346656037;
    for (let i = 0; i < a.length; i++) h = (h ^ a[i]) * 1099511628211;
    sum += h + n;
  }
  return sum;
}

// build makes strings, keeps them in a map, and lets the collector take them.
export function build(n: u32): u64 {
  let sum: u64 = 0;
  for (; n > 0; n--) {
    rng = 88172645463325252;
    const seen = new Map<string, i32>();
    let text = "";
    for (let i = 0; i < 60; i++) {
      const w = word();
      text += w + ";";
      const key = w.substring(0, 1);
      seen.set(key, (seen.has(key) ? seen.get(key) : 0) + i);
    }
    const parts = text.split(";");
    for (let i = 0; i < parts.length; i++) sum = sum * 31 + hash(parts[i].toUpperCase());
    const keys = seen.keys();
    for (let i = 0; i < keys.length; i++) sum += hash(keys[i]) ^ seen.get(keys[i]);
  }
  return sum;
}

// floats draws a small Mandelbrot set.
export function floats(n: u32): u64 {
  let sum: u64 = 0;
  for (; n > 0; n--) {
    for (let py = 0; py < 24; py++) {
      for (let px = 0; px < 48; px++) {
        const cx = <f64>px / 16.0 - 2.0, cy = <f64>py / 12.0 - 1.0;
        let x: f64 = 0, y: f64 = 0, k = 0;
        for (; k < 100 && x * x + y * y < 4.0; k++) {
          const t = x * x - y * y + cx;
          y = 2.0 * x * y + cy;
          x = t;
        }
        sum = sum * 31 + k;
      }
    }
  }
  return sum;
}
