;; Memory without a maximum, which grows in steps until the host refuses. At rcpt it answers
;; 450 and how many MiB it got, and the last octet of them must be its own.
(module
  (import "mg1" "subscribe" (func $subscribe (param i64) (result i32)))
  (memory (export "memory") 1)
  (func (export "mg1_init") (param i32) (result i64)
    (drop (call $subscribe (i64.const 0x60)))
    (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (local $step i32)
    (if (i32.ne (local.get 0) (i32.const 6)) (then (return (i64.const 0))))
    (drop (memory.grow (i32.const 65535)))
    (drop (memory.grow (i32.const -1)))
    (local.set $step (i32.const 1024))
    (loop $l
      (br_if $l (i32.ne (memory.grow (local.get $step)) (i32.const -1)))
      (local.set $step (i32.shr_u (local.get $step) (i32.const 1)))
      (br_if $l (local.get $step)))
    (i32.store8 (i32.sub (i32.shl (memory.size) (i32.const 16)) (i32.const 1)) (i32.const 1))
    (i64.or (i64.const 3) (i64.shl (i64.extend_i32_u (i32.add (i32.const 450) (i32.shr_u (memory.size) (i32.const 4)))) (i64.const 8)))))
