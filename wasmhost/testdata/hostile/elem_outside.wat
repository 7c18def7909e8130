;; An element segment that begins behind the end of the table.
(module
  (memory (export "memory") 1)
  (table 2 funcref)
  (elem (i32.const 2) $f)
  (func $f)
  (func (export "mg1_init") (param i32) (result i64) (i64.const 0x100000001000))
  (func (export "mg1_hook") (param i32 i32) (result i64) (i64.const 0)))
