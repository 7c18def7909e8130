;; A start section that calls every import that asks about a session: there is none. It traps
;; if one of them does not say EPHASE, and else has no objection.
(module
  (import "mg1" "subscribe" (func $subscribe (param i64) (result i32)))
  (import "mg1" "get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "mg1" "reply" (func $reply (param i32 i32) (result i32)))
  (import "mg1" "sess_set" (func $sess_set (param i32 i32 i32 i32) (result i32)))
  (import "mg1" "hdr_raw" (func $hdr_raw (param i32 i32 i32) (result i32)))
  (import "mg1" "body_len" (func $body_len (result i64)))
  (import "mg1" "rcpt_count" (func $rcpt_count (result i32)))
  (memory (export "memory") 1)
  (func $refused (param i32) (if (i32.ne (local.get 0) (i32.const -7)) (then (unreachable))))
  (func $start
    (call $refused (call $get (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 16)))
    (call $refused (call $reply (i32.const 0) (i32.const 16)))
    (call $refused (call $sess_set (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16)))
    (call $refused (call $hdr_raw (i32.const 0) (i32.const 0) (i32.const 16)))
    (call $refused (i32.wrap_i64 (call $body_len)))
    (call $refused (call $rcpt_count)))
  (start $start)
  (func (export "mg1_init") (param i32) (result i64)
    (drop (call $subscribe (i64.const 0x60)))
    (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0)))
