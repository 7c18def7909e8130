;; Tables: at rcpt an entry of another type is called, at mail one that is null, at data one
;; beyond the end, at headers an entry that was put there at run time, and at message the
;; table grows as far as it may, and is filled again and again.
(module
  (type $hook (func (param i32 i32) (result i64)))
  (type $f (func (result i64)))
  (import "mg1" "subscribe" (func $subscribe (param i64) (result i32)))
  (memory (export "memory") 1)
  (table $t 4 funcref)
  (elem (i32.const 0) $other)
  (elem declare func $good)
  (func $other (param f64))
  (func $good (result i64) (i64.const 0))
  (func (export "mg1_init") (param i32) (result i64)
    (drop (call $subscribe (i64.const 0x5e0)))
    (i64.const 0x100000001000))
  (func (export "mg1_hook") (type $hook)
    (if (i32.eq (local.get 0) (i32.const 5)) (then (return (call_indirect (type $f) (i32.const 1)))))
    (if (i32.eq (local.get 0) (i32.const 6)) (then (return (call_indirect (type $f) (i32.const 0)))))
    (if (i32.eq (local.get 0) (i32.const 7)) (then (return (call_indirect (type $f) (i32.const -1)))))
    (if (i32.eq (local.get 0) (i32.const 8)) (then
      (table.set $t (i32.const 0) (ref.func $good))
      (table.copy $t $t (i32.const 1) (i32.const 0) (i32.const 3))
      (return (call_indirect (type $f) (i32.const 1)))))
    (loop $l
      (drop (table.grow $t (ref.func $good) (i32.const 1000)))
      (table.fill $t (i32.const 0) (ref.func $good) (table.size $t))
      (br $l))
    (i64.const 0)))
