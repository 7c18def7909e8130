//! Workloads in Rust, with its standard library: an allocator, vectors, maps, traits.
//! As in C, name(n) does its work n times and returns a sum of all that it found.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasherDefault, Hasher};

/// Fnv hashes keys the same way in each run.
#[derive(Default)]
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ *b as u64).wrapping_mul(1099511628211);
        }
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Fnv>>;

struct Rng(u64);

impl Rng {
    fn new() -> Rng {
        Rng(88172645463325252)
    }
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }
    fn word(&mut self) -> String {
        let n = 3 + self.next() % 8;
        (0..n).map(|_| (b'a' + (self.next() % 26) as u8) as char).collect()
    }
}

fn hash(s: &[u8]) -> u64 {
    let mut h = Fnv(14695981039346656037);
    h.write(s);
    h.finish()
}

// JSON.

enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

struct Parser<'a> {
    s: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn space(&mut self) {
        while self.at < self.s.len() && matches!(self.s[self.at], b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }
    fn take(&mut self, c: u8) -> bool {
        self.space();
        let is = self.s.get(self.at) == Some(&c);
        self.at += is as usize;
        is
    }
    fn word(&mut self, w: &str, v: Json) -> Option<Json> {
        if self.s[self.at..].starts_with(w.as_bytes()) {
            self.at += w.len();
            return Some(v);
        }
        None
    }
    fn text(&mut self) -> Option<String> {
        if !self.take(b'"') {
            return None;
        }
        let mut out = Vec::new();
        loop {
            let c = *self.s.get(self.at)?;
            self.at += 1;
            match c {
                b'"' => return String::from_utf8(out).ok(),
                b'\\' => {
                    out.push(match *self.s.get(self.at)? {
                        b'n' => b'\n',
                        b't' => b'\t',
                        c => c,
                    });
                    self.at += 1;
                }
                c => out.push(c),
            }
        }
    }
    fn number(&mut self) -> Option<Json> {
        let from = self.at;
        while self.at < self.s.len() && matches!(self.s[self.at], b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E') {
            self.at += 1;
        }
        std::str::from_utf8(&self.s[from..self.at]).ok()?.parse().ok().map(Json::Number)
    }
    fn value(&mut self) -> Option<Json> {
        self.space();
        match *self.s.get(self.at)? {
            b'n' => self.word("null", Json::Null),
            b't' => self.word("true", Json::Bool(true)),
            b'f' => self.word("false", Json::Bool(false)),
            b'"' => self.text().map(Json::Text),
            b'[' => {
                self.at += 1;
                let mut list = Vec::new();
                while !self.take(b']') {
                    list.push(self.value()?);
                    self.take(b',');
                }
                Some(Json::List(list))
            }
            b'{' => {
                self.at += 1;
                let mut object = Vec::new();
                while !self.take(b'}') {
                    self.space();
                    let key = self.text()?;
                    self.take(b':');
                    object.push((key, self.value()?));
                    self.take(b',');
                }
                Some(Json::Object(object))
            }
            _ => self.number(),
        }
    }
}

fn sum_json(v: &Json) -> u64 {
    match v {
        Json::Null => 1,
        Json::Bool(b) => 2 + *b as u64,
        Json::Number(f) => f.to_bits(),
        Json::Text(s) => hash(s.as_bytes()),
        Json::List(l) => l.iter().fold(3, |h, v| h.wrapping_mul(31).wrapping_add(sum_json(v))),
        Json::Object(o) => o.iter().fold(4, |h, (k, v)| h.wrapping_mul(31).wrapping_add(hash(k.as_bytes()) ^ sum_json(v))),
    }
}

#[no_mangle]
pub extern "C" fn json(n: u32) -> u64 {
    let mut rng = Rng::new();
    let mut text = String::from("[");
    for i in 0..60 {
        let (a, b, r) = (rng.word(), rng.word(), rng.next());
        write!(text, r#"{{"from": "{}@{}.example", "size": {}, "score": {}.25e1, "tags": ["{}", null, {}], "n\t\"{}": {{}}}}, "#, a, b, r, r % 100, b, r & 1 == 0, i).unwrap();
    }
    text.push_str("null]");
    let mut sum = 0u64;
    for _ in 0..n {
        let v = Parser { s: text.as_bytes(), at: 0 }.value();
        sum = sum.wrapping_add(v.map_or(0, |v| sum_json(&v)));
    }
    sum
}

// Collections and strings.

#[no_mangle]
pub extern "C" fn strings(n: u32) -> u64 {
    let mut sum = 0u64;
    for i in 0..n {
        let mut rng = Rng::new();
        let mut text = String::new();
        for k in 0..200 {
            let w = rng.word();
            if k % 3 == 0 {
                text.push_str(&w.to_uppercase());
            } else {
                write!(text, "{}-{:04x}; ", w, rng.next() ^ i).unwrap();
            }
        }
        for part in text.split("; ") {
            sum = sum.wrapping_mul(31).wrapping_add(part.trim().chars().rev().map(|c| c as u64).sum());
        }
    }
    sum
}

#[no_mangle]
pub extern "C" fn words(n: u32) -> u64 {
    let mut rng = Rng::new();
    let text: Vec<String> = (0..500).map(|_| rng.word()[..3].to_string()).collect();
    let mut sum = 0u64;
    for _ in 0..n {
        let mut count: Map<&str, u32> = Map::default();
        for w in &text {
            *count.entry(w).or_insert(0) += 1;
        }
        let mut all: Vec<_> = count.into_iter().collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        for (w, c) in all {
            sum = sum.wrapping_mul(31).wrapping_add(hash(w.as_bytes()) ^ c as u64);
        }
    }
    sum
}

// Traits: a chain of rules behind pointers, which is call_indirect.

trait Rule {
    fn score(&self, line: &[u8]) -> u64;
}

struct Contains(Vec<u8>);
struct Longer(usize);
struct Digits;
struct Both(Box<dyn Rule>, Box<dyn Rule>);

impl Rule for Contains {
    fn score(&self, line: &[u8]) -> u64 {
        line.windows(self.0.len()).filter(|w| *w == &self.0[..]).count() as u64
    }
}
impl Rule for Longer {
    fn score(&self, line: &[u8]) -> u64 {
        (line.len() > self.0) as u64
    }
}
impl Rule for Digits {
    fn score(&self, line: &[u8]) -> u64 {
        line.iter().filter(|c| c.is_ascii_digit()).count() as u64
    }
}
impl Rule for Both {
    fn score(&self, line: &[u8]) -> u64 {
        self.0.score(line) * 7 + self.1.score(line)
    }
}

#[no_mangle]
pub extern "C" fn rules(n: u32) -> u64 {
    let mut rng = Rng::new();
    let mut rules: Vec<Box<dyn Rule>> = Vec::new();
    for i in 0..20 {
        let r = Contains(rng.word()[..2].as_bytes().to_vec());
        rules.push(match i % 4 {
            0 => Box::new(r),
            1 => Box::new(Longer(rng.next() as usize % 60)),
            2 => Box::new(Digits),
            _ => Box::new(Both(Box::new(r), Box::new(Longer(30)))),
        });
    }
    let lines: Vec<String> = (0..50).map(|i| format!("{} {} {}", rng.word(), i * i, rng.word())).collect();
    let mut sum = 0u64;
    for _ in 0..n {
        for l in &lines {
            for r in &rules {
                sum = sum.wrapping_mul(31).wrapping_add(r.score(l.as_bytes()));
            }
        }
    }
    sum
}

// Patterns: a matcher that goes back, in the shape of "star, dot and letters".

fn matches(p: &[u8], s: &[u8]) -> bool {
    match p {
        [] => true,
        [c, b'*', rest @ ..] => {
            let mut s = s;
            loop {
                if matches(rest, s) {
                    return true;
                }
                match s {
                    [d, tail @ ..] if *c == b'.' || c == d => s = tail,
                    _ => return false,
                }
            }
        }
        [c, rest @ ..] => match s {
            [d, tail @ ..] if *c == b'.' || c == d => matches(rest, tail),
            _ => false,
        },
    }
}

#[no_mangle]
pub extern "C" fn patterns(n: u32) -> u64 {
    let mut rng = Rng::new();
    let lines: Vec<String> = (0..40).map(|_| format!("{} {} {}", rng.word(), rng.word(), rng.word())).collect();
    let mut sum = 0u64;
    for _ in 0..n {
        for (i, l) in lines.iter().enumerate() {
            for p in ["a.*b.*c", "z*q", ".*x.*y", "e.t", "a*a*a*b"] {
                sum = sum.wrapping_mul(3).wrapping_add((0..l.len()).filter(|at| matches(p.as_bytes(), &l.as_bytes()[*at..])).count() as u64 + i as u64);
            }
        }
    }
    sum
}
