;; What one session leaves, the next must not find. At rcpt this guest changes all that a
;; module can change: memory and its size, globals of each type, tables, and it drops its
;; passive segments. At mail it answers 450 and the number of what it finds changed, each with
;; a bit of its own; a segment that is gone is a trap.
(module
  (type $hook (func (param i32 i32) (result i64)))
  (import "mg1" "subscribe" (func $subscribe (param i64) (result i32)))
  (memory (export "memory") 2)
  (table $t 4 funcref)
  (table $x 2 externref)
  (global $i (mut i32) (i32.const 1))
  (global $l (mut i64) (i64.const 2))
  (global $f (mut f32) (f32.const 3))
  (global $d (mut f64) (f64.const 4))
  (global $v (mut v128) (v128.const i64x2 5 6))
  (global $r (mut funcref) (ref.null func))
  (elem (table $t) (i32.const 0) func $one $two)
  (elem $late func $two $one)
  (data (i32.const 1024) "pristine")
  (data $lazy "lazy")

  (func $one (result i32) (i32.const 1))
  (func $two (result i32) (i32.const 2))

  (func (export "mg1_init") (param i32) (result i64)
    (drop (call $subscribe (i64.const 0x60)))
    (i64.const 0x100000001000)) ;; 4 KiB at 4 KiB

  (func $dirty
    (global.set $i (i32.const -1))
    (global.set $l (i64.const -1))
    (global.set $f (f32.const -1))
    (global.set $d (f64.const -1))
    (global.set $v (v128.const i64x2 -1 -1))
    (global.set $r (ref.func $one))
    (table.set $t (i32.const 0) (ref.func $two))
    (table.fill $t (i32.const 1) (ref.null func) (i32.const 1))
    (table.init $t $late (i32.const 2) (i32.const 0) (i32.const 2))
    (drop (table.grow $t (ref.null func) (i32.const 3)))
    (memory.init $lazy (i32.const 2048) (i32.const 0) (i32.const 4))
    (memory.fill (i32.const 1024) (i32.const 0) (i32.const 8))
    (i64.store (i32.const 131064) (i64.const -1))
    (drop (memory.grow (i32.const 1)))
    (elem.drop $late)
    (data.drop $lazy))

  (func $found (result i32) (local $bits i32)
    (local.set $bits (i32.ne (global.get $i) (i32.const 1)))
    (local.set $bits (i32.or (local.get $bits) (i32.shl (i64.ne (global.get $l) (i64.const 2)) (i32.const 1))))
    (local.set $bits (i32.or (local.get $bits) (i32.shl
      (i32.or (f32.ne (global.get $f) (f32.const 3)) (f64.ne (global.get $d) (f64.const 4))) (i32.const 2))))
    (local.set $bits (i32.or (local.get $bits) (i32.shl
      (v128.any_true (v128.xor (global.get $v) (v128.const i64x2 5 6))) (i32.const 3))))
    (local.set $bits (i32.or (local.get $bits) (i32.shl
      (i32.or (i32.eqz (ref.is_null (global.get $r))) (i32.ne (table.size $t) (i32.const 4))) (i32.const 4))))
    (local.set $bits (i32.or (local.get $bits) (i32.shl
      (i32.or (i32.ne (memory.size) (i32.const 2))
        (i32.or (i64.ne (i64.load (i32.const 131064)) (i64.const 0))
          (i64.ne (i64.load (i32.const 1024)) (i64.const 0x656e697473697270)))) (i32.const 5))))
    ;; The functions of the table, and what must be null in it.
    (if (i32.or (i32.eqz (ref.is_null (table.get $t (i32.const 2)))) (i32.eqz (ref.is_null (table.get $t (i32.const 3)))))
      (then (unreachable)))
    (if (i32.ne (call_indirect $t (result i32) (i32.const 0)) (i32.const 1)) (then (unreachable)))
    (if (i32.ne (call_indirect $t (result i32) (i32.const 1)) (i32.const 2)) (then (unreachable)))
    ;; Segments: both trap if they were dropped.
    (memory.init $lazy (i32.const 2048) (i32.const 0) (i32.const 4))
    (table.init $t $late (i32.const 0) (i32.const 1) (i32.const 1))
    (local.get $bits))

  (func (export "mg1_hook") (type $hook)
    (if (i32.eq (local.get 0) (i32.const 6)) (then (call $dirty) (return (i64.const 0))))
    ;; tempfail, code 450 + bits
    (i64.or (i64.const 3) (i64.shl (i64.extend_i32_u (i32.add (i32.const 450) (call $found))) (i64.const 8)))))
